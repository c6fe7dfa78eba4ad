# Every rewrite that is right on any device, in the order that lets each one find what the one before it made.
include "std/elementwise.kt"
include "std/merges.kt"
