"""ktc: a compiler that places large language models on the machine you have."""
