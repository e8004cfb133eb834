"""What a table costs and whether it holds what its layout promises; nothing here changes anything."""
