import Foundation
import Testing

@testable import VMCore

/// SplitMix64: small, seeded, the same everywhere.
struct SeededRandom: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }

    /// A span that is mostly short, sometimes a device's usual interval, rarely days.
    mutating func nextSpan() -> UInt64 {
        let bits = next() % 100 == 0 ? 48 : UInt64.random(in: 0...32, using: &self)
        return next() & ((1 << bits) - 1)
    }
}

/// One random access to a device at a moment; returns whatever it made visible.
typealias Access<D: Device> = (inout D, inout SeededRandom, Nanoseconds) -> UInt64

/// Runs `count` random accesses at increasing times; returns a digest of all that they made visible.
@discardableResult
func run<D: Device>(
    _ device: inout D, count: Int, from start: Nanoseconds, seed: UInt64, _ access: Access<D>
) -> (digest: UInt64, end: Nanoseconds) {
    var random = SeededRandom(seed: seed)
    var now = start
    var digest: UInt64 = 0
    for _ in 0..<count {
        now = Nanoseconds(now.rawValue &+ random.nextSpan())
        device.advance(to: now)
        let seen = access(&device, &random, now)
        digest = (digest ^ seen) &* 0x100_0000_01b3
        if let deadline = device.nextDeadline(after: now) { digest = (digest ^ deadline.rawValue) &* 0x100_0000_01b3 }
    }
    return (digest, now)
}

/// A device comes back from JSON equal, and goes on exactly as the one that was saved.
func saveRestoreEqual<D: Device>(_ device: D, seed: UInt64 = 1, mutate: Access<D>) throws {
    var original = device
    let end = run(&original, count: 2_000, from: Nanoseconds(0), seed: seed, mutate).end
    let before = original
    let saved = try JSONEncoder().encode(original)

    run(&original, count: 2_000, from: end, seed: seed &+ 1, mutate)
    var decoded = try JSONDecoder().decode(D.self, from: saved)
    #expect(decoded == before, "seed \(seed)")

    var continued = before
    let expected = run(&continued, count: 2_000, from: end, seed: seed &+ 2, mutate)
    let actual = run(&decoded, count: 2_000, from: end, seed: seed &+ 2, mutate)
    #expect(expected.digest == actual.digest, "seed \(seed)")
    #expect(decoded == continued, "seed \(seed)")
}

/// 100,000 random accesses: reaching the end is the claim. They are also deterministic.
func survivesRandomAccesses<D: Device>(_ device: D, seed: UInt64, _ access: Access<D>) {
    var first = device
    run(&first, count: 100_000, from: Nanoseconds(0), seed: seed, access)
    var late = device
    run(&late, count: 500, from: Nanoseconds(.max - 1_000_000), seed: seed, access)
}

/// Random accesses of any size at any offset below `ports`.
func portAccess<D: PortDevice>(ports: UInt16) -> Access<D> {
    { device, random, now in
        let offset = random.next() % 50 == 0 ? UInt16(truncatingIfNeeded: random.next()) : random.next(upTo: ports)
        let size = [1, 1, 1, 1, 2, 4, 0, 3, -1, 8][Int(random.next(upTo: 10))]
        if random.next() & 1 == 0 { return UInt64(device.read(offset: offset, size: size, at: now)) }
        device.write(offset: offset, size: size, value: UInt32(truncatingIfNeeded: random.next()), at: now)
        return 0
    }
}

extension SeededRandom {
    mutating func next(upTo limit: UInt16) -> UInt16 { UInt16(truncatingIfNeeded: next() % UInt64(limit)) }
}

/// Replaces the value at `path` in the JSON of `value`; for what a hostile file may hold.
func corrupted<T: Encodable>(_ value: T, _ path: [String], _ replacement: Any) throws -> Data {
    func replace(_ node: Any, _ path: ArraySlice<String>) -> Any {
        guard let key = path.first, var object = node as? [String: Any] else { return replacement }
        object[key] = replace(object[key] as Any, path.dropFirst())
        return object
    }
    let tree = try JSONSerialization.jsonObject(with: JSONEncoder().encode(value))
    return try JSONSerialization.data(withJSONObject: replace(tree, path[...]))
}
