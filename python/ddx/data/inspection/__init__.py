"""What `ddx inspect` says of a store: the ledger of its rows, and a page with statistics and plots."""
