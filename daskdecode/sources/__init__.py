"""Where volumes and labels come from: NIfTI files, label tables, BIDS folders, simulations."""
