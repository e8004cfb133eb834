"""Tables that other engines wrote, read by field id."""
