include "std/fusion.kt"
include "included/nowhere.kt"
