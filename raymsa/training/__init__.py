"""Training and evaluating one run. Only worker.py knows Ray."""
