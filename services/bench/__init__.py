"""`dekag bench`: how fast the services are, as ratios to something measured in the same run."""
