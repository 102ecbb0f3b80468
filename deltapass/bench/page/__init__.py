"""The page of records: one HTML file that needs nothing else, with data and figures beside it."""
