"""What records say: tables, the claims of the paper that they bear out, two runs compared."""
