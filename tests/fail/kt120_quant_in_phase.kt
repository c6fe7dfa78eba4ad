device host = cpu
rule all {
  match **
  place host
  on decode {
    quant q4_k
  }
}
