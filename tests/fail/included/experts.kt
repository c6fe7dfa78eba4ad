let experts = match model.layers[*].mlp.experts
