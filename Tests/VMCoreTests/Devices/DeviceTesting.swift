import Foundation
import Testing

@testable import VMCore

/// A small random-number generator that gives the same numbers for the same seed everywhere (SplitMix64).
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }

    mutating func below(_ limit: UInt64) -> UInt64 { limit == 0 ? 0 : next() % limit }

    mutating func chance(_ numerator: UInt64, in denominator: UInt64) -> Bool { below(denominator) < numerator }

    /// A value that is often one a device treats specially: small, a single bit, all ones.
    mutating func value() -> UInt64 {
        switch below(5) {
        case 0: below(32)
        case 1: 1 &<< below(64)
        case 2: .max &>> below(64)
        case 3: next() & 0xffff
        default: next()
        }
    }
}

/// Checks that a device's saved state is all of its state.
///
/// For each seed: brings `fresh` into some state, saves it as JSON, goes on with the original, restores, and compares
/// with the moment of saving. Then the restored device makes the accesses that the original has made since, and must
/// answer and end alike, which also catches state that `==` or the coding leaves out.
///
/// - Parameter mutate: makes a few hundred random accesses that depend on the generator and the device alone, at
///   moments from `from` on and spanning less than 1000 s, and returns what the device answered.
func saveRestoreEqual<D: Device, Answer: Equatable>(
    _ fresh: D, seeds: Range<UInt64> = 1..<21, sourceLocation: SourceLocation = #_sourceLocation,
    mutate: (_ device: inout D, _ generator: inout SeededGenerator, _ from: Nanoseconds) -> Answer
) throws {
    let encoder = JSONEncoder()
    encoder.outputFormatting = .sortedKeys
    let start = Nanoseconds(0)
    let middle = Nanoseconds.seconds(1_000)

    for seed in seeds {
        var original = fresh
        var generator = SeededGenerator(seed: seed)
        _ = mutate(&original, &generator, start)
        let copy = original
        let saved = try encoder.encode(original)

        var goingOn = generator
        let answer = mutate(&original, &goingOn, middle)

        var restored = try JSONDecoder().decode(D.self, from: saved)
        #expect(restored == copy, "seed \(seed): the restored state differs", sourceLocation: sourceLocation)
        #expect(
            try encoder.encode(restored) == saved, "seed \(seed): saving again differs", sourceLocation: sourceLocation)
        #expect(
            restored.nextDeadline(after: middle) == copy.nextDeadline(after: middle),
            "seed \(seed): the deadline differs", sourceLocation: sourceLocation)

        var again = generator
        let restoredAnswer = mutate(&restored, &again, middle)
        #expect(restoredAnswer == answer, "seed \(seed): the answers differ", sourceLocation: sourceLocation)
        #expect(restored == original, "seed \(seed): the continued state differs", sourceLocation: sourceLocation)
    }
}

/// Checks that a saved state in which numbers were replaced or array elements dropped is refused, or else harmless.
///
/// Reaching the end is the claim: a trap ends the test process. Returns how many damaged states were accepted.
@discardableResult
func damagedStatesAreHarmless<D: Device, Answer>(
    _ fresh: D, rounds: UInt64 = 200, seed: UInt64 = 99, sourceLocation: SourceLocation = #_sourceLocation,
    mutate: (_ device: inout D, _ generator: inout SeededGenerator, _ from: Nanoseconds) -> Answer
) throws -> Int {
    print("damagedStatesAreHarmless \(D.self): seed \(seed)")
    var generator = SeededGenerator(seed: seed)
    var accepted = 0
    for _ in 0..<rounds {
        var device = fresh
        _ = mutate(&device, &generator, Nanoseconds(0))
        let text = String(decoding: try JSONEncoder().encode(device), as: UTF8.self)
        let damaged = damage(text, &generator)
        guard var decoded = try? JSONDecoder().decode(D.self, from: Data(damaged.utf8)) else { continue }
        accepted += 1
        _ = mutate(&decoded, &generator, Nanoseconds.seconds(1_000))
        _ = decoded.nextDeadline(after: Nanoseconds(.max))
        decoded.advance(to: Nanoseconds(.max))
    }
    print("damagedStatesAreHarmless \(D.self): \(accepted) of \(rounds) damaged states were accepted")
    #expect(accepted > 0, "every damaged state was refused, so nothing was tested", sourceLocation: sourceLocation)
    return accepted
}

/// Replaces between a quarter and a 128th of the numbers in a JSON text, and now and then drops one from an array.
private func damage(_ text: String, _ generator: inout SeededGenerator) -> String {
    let extremes = [
        "0", "1", "7", "8", "15", "16", "23", "24", "25", "31", "32", "63", "64", "127", "128", "200", "255", "256",
        "65535", "4294967295", "9223372036854775807", "18446744073709551615", "-1",
    ]
    let sparsity: UInt64 = 4 << generator.below(6)
    var result = ""
    var rest = Substring(text)
    while let first = rest.first {
        let isNumber = first.isNumber && (result.last.map { ":,[".contains($0) } ?? false)
        guard isNumber else {
            result.append(first)
            rest.removeFirst()
            continue
        }
        let digits = rest.prefix(while: \.isNumber)
        rest = rest.dropFirst(digits.count)
        if rest.first == ",", generator.chance(1, in: 200) {
            rest.removeFirst()
        } else if generator.chance(1, in: sparsity) {
            result += extremes[Int(generator.below(UInt64(extremes.count)))]
        } else {
            result += digits
        }
    }
    return result
}
