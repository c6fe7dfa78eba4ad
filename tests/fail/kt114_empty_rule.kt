rule head { match lm_head expect 1 }
