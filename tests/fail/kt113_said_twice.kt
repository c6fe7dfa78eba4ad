device host = cpu
rule all {
  match  **
  place  host
  quant  q8_0
  place  host
  on decode { place host }
  on decode { kernel auto }
}
