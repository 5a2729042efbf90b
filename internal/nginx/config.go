package nginx

import "fmt"

// Config is what a server is to do.
type Config struct {
	Workers int    // 0: one for each CPU
	Listen  string // port, or address and port
	Status  string // the same, for /stub_status
	Prefix  string // of the URLs, with slashes at both ends
	Dir     string // what is served
	State   string // an existing directory for its own files
	// AccessLog is a file for a line for each request, in nginx's format "combined"; empty: none, as in a bench.
	AccessLog string
}

// String is the configuration file.
//
// It is tuned as nginx's documentation says for static files: sendfile with tcp_nopush (docs.nginx.com, "Serving Static Content"), one worker for each CPU, and
// open_file_cache (ngx_http_core_module), without which each request would open its file: 1 ms on a 9p mount. sendfile_max_chunk is left at its default, 2 MiB.
// keepalive_requests is so high that no connection of a bench is closed, as our own server closes none. It runs as root, as all servers of a lab do.
func (c Config) String() string {
	accessLog := "off"
	if c.AccessLog != "" {
		accessLog = c.AccessLog
	}
	workers := "auto"
	if c.Workers > 0 {
		workers = fmt.Sprint(c.Workers)
	}
	return fmt.Sprintf(`daemon off;
user root root;
worker_processes %[1]s;
worker_rlimit_nofile 16384;
pid %[6]s/nginx.pid;
error_log stderr warn;
events {
	worker_connections 4096;
}
http {
	sendfile on;
	tcp_nopush on;
	tcp_nodelay on;
	keepalive_timeout 75s;
	keepalive_requests 1000000;
	open_file_cache max=10000 inactive=10m;
	open_file_cache_valid 10m;
	open_file_cache_min_uses 1;
	access_log %[7]s;
	types {
		application/dash+xml mpd;
		video/mp4 mp4;
		video/iso.segment m4s;
	}
	default_type application/octet-stream;
	client_body_temp_path %[6]s/body;
	proxy_temp_path %[6]s/proxy;
	fastcgi_temp_path %[6]s/fastcgi;
	uwsgi_temp_path %[6]s/uwsgi;
	scgi_temp_path %[6]s/scgi;
	server {
		listen %[2]s backlog=4096;
		location %[4]s {
			alias %[5]s/;
		}
	}
	server {
		listen %[3]s;
		location = /stub_status {
			stub_status;
		}
	}
}
`, workers, c.Listen, c.Status, c.Prefix, c.Dir, c.State, accessLog)
}

// Accounts are the files of a guest from which the C library reads what "user root root" means.
func Accounts() map[string][]byte {
	return map[string][]byte{
		"/etc/passwd": []byte("root:x:0:0:root:/root:/bin/sh\n"),
		"/etc/group":  []byte("root:x:0:\n"),
	}
}
