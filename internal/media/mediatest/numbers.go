package mediatest

import "strconv"

func decimal(n int) string { return strconv.Itoa(n) }
func hex(n int) string     { return strconv.FormatInt(int64(n), 16) }
