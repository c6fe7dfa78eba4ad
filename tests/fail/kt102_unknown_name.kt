device host = cpu
param gpu_layers: int = 4
rule late { match model.layers[*] where layer >= layers - gpu_layer place host }
