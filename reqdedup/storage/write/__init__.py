"""Writing a table: spill, arrange, data files, one commit; and the table of rejected rows."""
