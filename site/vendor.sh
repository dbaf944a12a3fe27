#!/bin/sh
# Renew what the site ships of other projects, from their npm packages. Run by hand; neither building nor reading needs it.
#   KaTeX (MIT): formulas       reveal.js (MIT): slides
set -eu
cd "$(dirname "$0")/_static"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fetch() {  # NAME VERSION SHA256: the package, unpacked in $work/package
    rm -rf "$work/package"
    file=$(cd "$work" && npm pack --silent "$1@$2")
    echo "$3  $work/$file" | sha256sum --check --quiet
    tar -xzf "$work/$file" -C "$work"
}

fetch katex 0.19.1 24da5a599eb2fcede2e270b99a6ff48bca816beecc95feeb84e8cccbd1bb34fd
rm -rf katex
mkdir -p katex/fonts
cp "$work/package/LICENSE" "$work/package/dist/katex.min.js" "$work/package/dist/katex.min.css" katex
cp "$work"/package/dist/fonts/*.woff2 katex/fonts

cp "$work/package/dist/contrib/auto-render.min.js" katex

fetch reveal.js 6.0.2 2f0c20bfb02447a198a1ebe8a8c097a5437d035caa38f2820bf4ba887a3eac91
mkdir -p reveal/dist  # dist/theme is ours
cp "$work/package/LICENSE" reveal
cp "$work/package/dist/reveal.js" "$work/package/dist/reveal.css" reveal/dist
