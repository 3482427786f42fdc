"""The families of teachers: one file each, and the table that finds them."""
