device host = cpu
rule everything {
  match  **
  plce   host
}
