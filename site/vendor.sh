#!/bin/sh
# Renew what the site ships of other projects, from their npm packages. Run by hand; neither building nor reading needs it.
#   KaTeX (MIT): formulas
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

