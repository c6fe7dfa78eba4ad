phase bulk = tokens - 512
