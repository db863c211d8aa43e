"""`raymsa bench`: speed and memory of a job on this machine, perhaps against the plain recipe. It needs no Ray."""
