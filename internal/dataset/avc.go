package dataset

import "math/bits"

// avcConfiguration is the decoder configuration record (ISO/IEC 14496-15, section 5.3.3.1) with one SPS and one PPS.
func avcConfiguration(set Set) []byte {
	sps, pps := sequenceParameters(set.Width, set.Height), pictureParameters()
	record := []byte{1, avcProfile, avcConstraints, avcLevel, 0xfc | 3, 0xe0 | 1} // NAL lengths of 4 bytes; 1 SPS
	record = append(append(record, u16(uint16(len(sps)))...), sps...)
	record = append(append(record, 1), u16(uint16(len(pps)))...)
	return append(record, pps...)
}

// sequenceParameters is a sequence parameter set (ITU-T H.264, section 7.3.2.1.1). Width must be a multiple of 16, height of 2.
// Sizes as ours need no emulation prevention bytes, which a test holds.
func sequenceParameters(width, height int) []byte {
	const macroblock = 16
	rows := (height + macroblock - 1) / macroblock
	cropped := uint32(rows*macroblock-height) / 2 // in rows of chroma
	w := bitWriter{bytes: []byte{0x67, avcProfile, avcConstraints, avcLevel}}
	w.exp(0)                            // seq_parameter_set_id
	w.exp(0)                            // log2_max_frame_num_minus4
	w.exp(2)                            // pic_order_cnt_type
	w.exp(1)                            // max_num_ref_frames
	w.bit(0)                            // gaps_in_frame_num_value_allowed_flag
	w.exp(uint32(width/macroblock) - 1) // pic_width_in_mbs_minus1
	w.exp(uint32(rows) - 1)             // pic_height_in_map_units_minus1
	w.bit(1)                            // frame_mbs_only_flag
	w.bit(1)                            // direct_8x8_inference_flag
	w.bit(min(cropped, 1))              // frame_cropping_flag
	if cropped > 0 {
		w.exp(0)       // frame_crop_left_offset
		w.exp(0)       // frame_crop_right_offset
		w.exp(0)       // frame_crop_top_offset
		w.exp(cropped) // frame_crop_bottom_offset
	}
	w.bit(0) // vui_parameters_present_flag
	return w.trailing()
}

// pictureParameters is a picture parameter set (ITU-T H.264, section 7.3.2.2).
func pictureParameters() []byte {
	w := bitWriter{bytes: []byte{0x68}}
	w.exp(0) // pic_parameter_set_id
	w.exp(0) // seq_parameter_set_id
	w.bit(0) // entropy_coding_mode_flag
	w.bit(0) // bottom_field_pic_order_in_frame_present_flag
	w.exp(0) // num_slice_groups_minus1
	w.exp(0) // num_ref_idx_l0_default_active_minus1
	w.exp(0) // num_ref_idx_l1_default_active_minus1
	w.bit(0) // weighted_pred_flag
	w.bit(0) // weighted_bipred_idc, 2 bits
	w.bit(0)
	w.exp(0) // pic_init_qp_minus26
	w.exp(0) // pic_init_qs_minus26
	w.exp(0) // chroma_qp_index_offset
	w.bit(1) // deblocking_filter_control_present_flag
	w.bit(0) // constrained_intra_pred_flag
	w.bit(0) // redundant_pic_cnt_present_flag
	return w.trailing()
}

// bitWriter writes bits, the highest of a byte first.
type bitWriter struct {
	bytes []byte
	free  int // bits that are unwritten in the last byte
}

func (w *bitWriter) bit(v uint32) {
	if w.free == 0 {
		w.bytes = append(w.bytes, 0)
		w.free = 8
	}
	w.free--
	w.bytes[len(w.bytes)-1] |= byte(v&1) << w.free
}

// exp writes an Exp-Golomb code, ue(v) (section 9.1).
func (w *bitWriter) exp(v uint32) {
	n := bits.Len32(v + 1)
	for range n - 1 {
		w.bit(0)
	}
	for i := n - 1; i >= 0; i-- {
		w.bit((v + 1) >> i)
	}
}

// trailing ends the NAL unit with rbsp_trailing_bits and returns it.
func (w *bitWriter) trailing() []byte {
	w.bit(1)
	return w.bytes
}
