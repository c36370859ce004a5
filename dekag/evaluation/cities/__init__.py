"""`dekag simulate`: runs a city's strategies and seeds, and writes rows, tables and plots."""
