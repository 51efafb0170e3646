import CScalarXXH3
import CXXHash

/// XXH3-128 by the code that is faster on this processor.
///
/// The library's own uses vectors. An emulated processor executes those by calls: under QEMU's TCG the scalar code takes
/// a third of the time (5.5 µs a page, not 15). A real one takes about twice as long by it (0.3 and 0.7 µs).
package enum XXH3 {
    /// Whether the scalar code is the faster one here, measured when first asked.
    static let prefersScalar: Bool = {
        withUnsafeTemporaryAllocation(byteCount: pageSize, alignment: 64) { page in
            page.initializeMemory(as: UInt8.self, repeating: 0x5A)
            let bytes = UnsafeRawBufferPointer(page)
            func best(_ hash: (UnsafeRawBufferPointer, UInt64) -> Digest128) -> UInt64 {
                var best = UInt64.max
                for round in 0..<8 as Range<UInt64> {
                    let began = hostTime()
                    var seed = round
                    for _ in 0..<4 { seed = hash(bytes, seed).low }
                    best = min(best, (hostTime() - began).rawValue)
                }
                return best
            }
            return 4 * best(scalar) < 3 * best(vector)
        }
    }()

    /// Seed 0 is that of `XXH3_128bits`.
    static func digest(_ bytes: UnsafeRawBufferPointer, seed: UInt64 = 0) -> Digest128 {
        prefersScalar ? scalar(bytes, seed: seed) : vector(bytes, seed: seed)
    }

    package static func vector(_ bytes: UnsafeRawBufferPointer, seed: UInt64) -> Digest128 {
        let hash = XXH3_128bits_withSeed(bytes.baseAddress, bytes.count, seed)
        return Digest128(low: hash.low64, high: hash.high64)
    }

    package static func scalar(_ bytes: UnsafeRawBufferPointer, seed: UInt64) -> Digest128 {
        let hash = scalar_xxh3_128bits(bytes.baseAddress, bytes.count, seed)
        return Digest128(low: hash.low64, high: hash.high64)
    }
}
