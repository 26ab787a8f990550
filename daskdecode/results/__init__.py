"""What an analysis leaves behind: BIDS-derivative files and one report that opens anywhere."""
