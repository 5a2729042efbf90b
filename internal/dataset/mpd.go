package dataset

import "fmt"

// mpd is the media presentation description (ISO/IEC 23009-1): one video representation, segments by number.
func mpd(set Set, segments int) []byte {
	return fmt.Appendf(nil, `<?xml version="1.0" encoding="UTF-8"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:isoff-live:2011" type="static" mediaPresentationDuration="PT%dS" minBufferTime="PT%dS">
  <Period id="0" start="PT0S">
    <AdaptationSet id="0" contentType="video" mimeType="video/mp4" segmentAlignment="true" startWithSAP="1">
      <SegmentTemplate timescale="1" duration="%d" startNumber="1" initialization="%s" media="seg-$Number%%05d$.m4s"/>
      <Representation id="%s" codecs="%s" bandwidth="%d" width="%d" height="%d" frameRate="%d"/>
    </AdaptationSet>
  </Period>
</MPD>
`, segments*set.SegmentSeconds, set.SegmentSeconds, set.SegmentSeconds, InitName,
		set.Name, codecs(), set.BitsPerSecond, set.Width, set.Height, framesPerSecond)
}
