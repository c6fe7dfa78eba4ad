device host = cpu

rul everything {
  match ** place host
}
