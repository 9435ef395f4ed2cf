"""ktaskfs: chunked, multithreaded work on huge-page memory, driven through a filesystem like /proc."""
