"""ktaskfs: chunked, multithreaded work on huge-page memory, controlled through a filesystem like /proc."""
