// Package origin reads files from where they are kept: a directory (an NFS mount), an HTTP server, an S3 bucket.
//
// In the data path it stands behind the host's cache (package cache), which asks it for versions and ranges and knows no kind of origin from another. An
// [Origin] is one attempt at one thing; a [Source] is an origin with patience and limits: time-outs, retries that go on where the last one stopped, a cap
// on requests at a time and on bytes a second.
//
// # Versions
//
// A [Version] is all that an origin says of a file's content. Open gives bytes of the version that it is asked for, or [ErrChanged]: by a condition in the request
// where the origin knows one (If-Match), and by comparing what the answer says of itself.
//
// # Trust
//
// Names come from guests. They are checked (fs.ValidPath, no NUL), escaped where they become a URL, and opened through an os.Root where they become a path, so that
// no name leads out of the origin's directory or prefix; symbolic links within a directory are followed. The origin is trusted with the bytes and with nothing
// else: lengths, ranges and redirects are checked.
//
// It needs no capability and no particular kernel. It must not be used where a file of this machine is to be sent: that is package share.
package origin
