"""The book around the library: what only its notebooks need. It imports `adlib`, never the reverse."""
