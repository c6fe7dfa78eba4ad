rule odd { match re"model\.layers\.([0-9]" quant q8_0 }
