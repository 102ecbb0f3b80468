"""The stages of the compiler: a traced graph in, static variants out."""
