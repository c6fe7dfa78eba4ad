device host = cpu
rule everything {
  match  **
  expect any
  place  host
}
