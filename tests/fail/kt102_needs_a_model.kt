param half: int = layers // 2
device host = cpu (memory = config.hidden_size * 1MiB)
rule some { match model.layers[layer] place host expect layer }
