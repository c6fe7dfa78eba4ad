device host = cpu

rule everything {
  match  **
  place  host

rule head { match lm_head place host }
