import CLZ4
import CXXHash
import CZstd
import VMCore

/// zstd, LZ4 and XXH3 behind safe signatures. Everything unsafe here passes a buffer with its own length to a C
/// function that respects it.

/// A zstd context for writing, kept because making one costs more than a small frame.
final class ZstdCompressor {
    private let context: OpaquePointer

    init(level: Int32, dictionary: [UInt8] = []) throws(TraceError) {
        guard let context = ZSTD_createCCtx() else { throw .invalid("no memory for a zstd context") }
        self.context = context
        ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, level)
        guard !dictionary.isEmpty else { return }
        // A trace has one dictionary, so that its frames needn't name it.
        ZSTD_CCtx_setParameter(context, ZSTD_c_dictIDFlag, 0)
        let result = dictionary.withUnsafeBytes { ZSTD_CCtx_loadDictionary(context, $0.baseAddress, $0.count) }
        guard ZSTD_isError(result) == 0 else {
            ZSTD_freeCCtx(context)
            throw .invalid("zstd refuses its own dictionary: \(String(cString: ZSTD_getErrorName(result)))")
        }
    }

    deinit { ZSTD_freeCCtx(context) }

    /// One frame that states its content size. At each of `cuts`, ascending offsets into `bytes`, a block ends:
    /// columns of different statistics then don't share a Huffman table, which saves clocks 6 per cent.
    func compress(_ bytes: [UInt8], cuts: [Int] = []) throws(TraceError) -> [UInt8] {
        ZSTD_CCtx_reset(context, ZSTD_reset_session_only)
        ZSTD_CCtx_setPledgedSrcSize(context, UInt64(bytes.count))
        let capacity = ZSTD_compressBound(bytes.count) + 16 * (cuts.count + 2)
        var failure: String?
        let frame = [UInt8](unsafeUninitializedCapacity: capacity) { buffer, count in
            bytes.withUnsafeBytes { source in
                var output = ZSTD_outBuffer(dst: buffer.baseAddress, size: capacity, pos: 0)
                var input = ZSTD_inBuffer(src: source.baseAddress, size: 0, pos: 0)
                for (end, mode) in cuts.map({ ($0, ZSTD_e_flush) }) + [(bytes.count, ZSTD_e_end)] {
                    input.size = end
                    var left = 1
                    while left != 0 && failure == nil {
                        left = ZSTD_compressStream2(context, &output, &input, mode)
                        if ZSTD_isError(left) != 0 { failure = String(cString: ZSTD_getErrorName(left)) }
                        if left != 0 && output.pos == output.size { failure = "frame longer than its bound" }
                    }
                }
                count = output.pos
            }
        }
        if let failure { throw .invalid("zstd can't compress: \(failure)") }
        return frame
    }
}

/// A zstd context for reading.
final class ZstdDecompressor {
    private let context: OpaquePointer

    init() throws(Malformed) {
        guard let context = ZSTD_createDCtx() else { throw Malformed("no memory for a zstd context") }
        self.context = context
    }

    deinit { ZSTD_freeDCtx(context) }

    /// The content of the one frame in `bytes`, which must be exactly `size` bytes; the caller has bounded `size`.
    func decompress(_ bytes: [UInt8], size: Int, dictionary: ZstdDictionary? = nil) throws(Malformed) -> [UInt8] {
        let (stated, frame) = bytes.withUnsafeBytes {
            (ZSTD_getFrameContentSize($0.baseAddress, $0.count), ZSTD_findFrameCompressedSize($0.baseAddress, $0.count))
        }
        guard stated == UInt64(size) else { throw Malformed("its size before compression isn't \(size) bytes") }
        guard frame == bytes.count else { throw Malformed("its compressed data isn't one zstd frame") }
        var result = 0
        let content = [UInt8](unsafeUninitializedCapacity: max(size, 1)) { buffer, count in
            result = bytes.withUnsafeBytes {
                ZSTD_decompress_usingDDict(
                    context, buffer.baseAddress, size, $0.baseAddress, $0.count, dictionary?.digested)
            }
            count = ZSTD_isError(result) == 0 ? min(result, size) : 0
        }
        if ZSTD_isError(result) != 0 {
            throw Malformed("zstd can't decompress it: \(String(cString: ZSTD_getErrorName(result)))")
        }
        guard content.count == size else { throw Malformed("its data is shorter than stated") }
        return content
    }
}

/// A dictionary that is ready for reading. It never changes, so that any thread may use it.
final class ZstdDictionary: @unchecked Sendable {
    fileprivate let digested: OpaquePointer

    init(_ bytes: [UInt8]) throws(Malformed) {
        guard let digested = bytes.withUnsafeBytes({ ZSTD_createDDict($0.baseAddress, $0.count) }) else {
            throw Malformed("zstd refuses it")
        }
        self.digested = digested
    }

    deinit { ZSTD_freeDDict(digested) }

    /// A dictionary of at most `limit` bytes from `samples`, which lie end to end in `content`; nil where zstd finds
    /// too little that they have in common.
    static func train(_ content: [UInt8], samples: [Int], limit: Int) -> [UInt8]? {
        var size = 0
        let bytes = [UInt8](unsafeUninitializedCapacity: limit) { buffer, count in
            size = content.withUnsafeBytes {
                ZDICT_trainFromBuffer(buffer.baseAddress, limit, $0.baseAddress, samples, UInt32(samples.count))
            }
            count = ZDICT_isError(size) == 0 ? size : 0
        }
        return bytes.isEmpty ? nil : bytes
    }
}

/// One LZ4 block.
enum LZ4 {
    /// nil where the block wouldn't be shorter than `bytes`.
    static func compress(_ bytes: [UInt8]) -> [UInt8]? {
        let limit = bytes.count - 1
        guard limit > 0 else { return nil }
        // In room of its own first: an array keeps all the room that it was made with.
        return withUnsafeTemporaryAllocation(of: CChar.self, capacity: limit) { block in
            let written = bytes.withUnsafeBytes { source in
                LZ4_compress_default(
                    source.bindMemory(to: CChar.self).baseAddress, block.baseAddress, Int32(source.count), Int32(limit))
            }
            return written > 0 ? Array(UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(block)[..<Int(written)])) : nil
        }
    }

    /// Exactly `size` bytes; the caller has bounded `size` and the block.
    static func decompress(_ block: [UInt8], size: Int) throws(Malformed) -> [UInt8] {
        let bytes = [UInt8](unsafeUninitializedCapacity: size) { buffer, count in
            let written = block.withUnsafeBytes { source in
                LZ4_decompress_safe(
                    source.bindMemory(to: CChar.self).baseAddress,
                    UnsafeMutableRawPointer(buffer.baseAddress!).assumingMemoryBound(to: CChar.self),
                    Int32(source.count), Int32(size))
            }
            count = max(0, min(Int(written), size))
        }
        guard bytes.count == size else { throw Malformed("LZ4 can't decompress it to \(size) bytes") }
        return bytes
    }
}

/// The XXH3-128 of a page or an extent: what finds it, and what it is checked against.
struct ContentDigest: Hashable, Sendable {
    var low: UInt64
    var high: UInt64

    init(_ bytes: UnsafeRawBufferPointer) {
        let digest = Digest128(of: bytes)
        low = digest.low
        high = digest.high
    }

    init(_ bytes: [UInt8]) { self = bytes.withUnsafeBytes { Self($0) } }

    /// Sixteen bytes in the order that xxHash calls canonical: `xxh128sum` prints the same.
    var canonical: [UInt8] {
        [high, low].flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> UInt64(56 - 8 * $0)) } }
    }
}

/// XXH3-64 of the parts; the digest of each part is the seed of the next.
func digest64(_ parts: UnsafeRawBufferPointer...) -> UInt64 {
    if parts.count == 1 { return XXH3_64bits(parts[0].baseAddress, parts[0].count) }
    var seed: UInt64 = 0
    for part in parts { seed = XXH3_64bits_withSeed(part.baseAddress, part.count, seed) }
    return seed
}
