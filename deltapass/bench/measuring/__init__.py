"""Times, compiles and memory of methods, and whether a time may count."""
