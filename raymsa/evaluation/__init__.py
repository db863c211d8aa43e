"""How good a prediction is: metrics of the field."""
