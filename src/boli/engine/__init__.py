"""Where orders and updates travel; each file is the only importer of its library."""
