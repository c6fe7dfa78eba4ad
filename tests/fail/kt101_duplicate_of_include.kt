include "included/experts.kt"
let experts = match **.experts
