// Package media serves DASH and HLS files over HTTP/1.1: the manifest, the segments, and whatever else lies beside them.
//
// In the data path it is the first step: it reads the request, finds the file in an [fs.FS], answers conditions and ranges, and
// gives the bytes to the connection. It knows net/http and io/fs only. Whether the connection copies the bytes, sends them with
// sendfile(2), or has someone else send them is not its business, but it keeps the way open for all three: the response header is
// flushed before the body, and the body reaches the connection's io.ReaderFrom as an *io.LimitedReader directly over the fs.File.
//
// It must not be used to list directories, to receive uploads, or to serve files that are to be compressed on the way.
//
// It needs no capability and no particular kernel.
package media
