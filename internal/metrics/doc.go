// Package metrics shows the daemon and the guest's server to Prometheus: a histogram of durations ([Histogram]) and the answer to GET /metrics
// ([Handler]).
//
// It is no step of the data path and must not become one. What is counted stays where it is counted, as an atomic number or under a lock that is
// there anyway; a prometheus.Collector of packages host and guest reads it when somebody asks. So an observation costs two atomic additions, and
// a metric that nobody asks for costs nothing.
package metrics
