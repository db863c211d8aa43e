"""One file per readout: how a score is read out of the Thinker."""
