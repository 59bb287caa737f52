"""Times single steps of recurrent layers: `make bench-steps`."""
