import Foundation
import Testing
import VMCore

/// A device under the generic tests: how to make one, and one random access to it.
protocol TestedDevice: Device {
    /// Devices fresh from power-on, in the configurations worth testing.
    static var specimens: [Self] { get }

    /// Makes one random access, which depends on the generator, the device and `now` alone, and returns what it made
    /// visible. The device need not have been advanced to `now`.
    mutating func randomAccess(_ generator: inout SeededGenerator, at now: Nanoseconds) -> UInt64

    /// The same for a device decoded from a damaged state, which need not keep what `randomAccess` expects.
    mutating func randomAccessWhenDamaged(_ generator: inout SeededGenerator, at now: Nanoseconds) -> UInt64
}

extension TestedDevice {
    mutating func randomAccessWhenDamaged(_ generator: inout SeededGenerator, at now: Nanoseconds) -> UInt64 {
        randomAccess(&generator, at: now)
    }

    /// Makes `count` random accesses at growing moments and returns what they made visible, deadlines included.
    @discardableResult
    mutating func makeRandomAccesses(
        _ count: Int, _ generator: inout SeededGenerator, from start: Nanoseconds, isDamaged: Bool = false
    ) -> (answers: [UInt64], end: Nanoseconds) {
        var now = start
        var answers: [UInt64] = []
        for _ in 0..<count {
            now = now + generator.span()
            // Platforms advance devices when a deadline is due, and not before each access.
            if generator.chance(1, in: 2) { advance(to: now) }
            answers.append(
                isDamaged ? randomAccessWhenDamaged(&generator, at: now) : randomAccess(&generator, at: now))
            if let deadline = nextDeadline(after: now) { answers.append(deadline.rawValue) }
        }
        return (answers, now)
    }
}

extension SeededGenerator {
    mutating func chance(_ numerator: UInt64, in denominator: UInt64) -> Bool { next(below: denominator) < numerator }

    /// One of the elements, which must be some.
    mutating func pick<T>(_ elements: [T]) -> T { elements[Int(next(below: UInt64(elements.count)))] }

    /// A value that is often one a device treats specially: small, a single bit, all ones.
    mutating func value() -> UInt64 {
        switch next(below: 5) {
        case 0: next(below: 32)
        case 1: 1 &<< next(below: 64)
        case 2: .max &>> next(below: 64)
        case 3: next() & 0xffff
        default: next()
        }
    }

    /// A span that is mostly short, sometimes a device's usual interval, rarely days.
    mutating func span() -> Nanoseconds {
        let bits = chance(1, in: 100) ? 48 : next(below: 33)
        return Nanoseconds(next() & ((1 << bits) - 1))
    }
}

extension PortDevice {
    /// A random access of any size, mostly at an offset below `ports`.
    mutating func randomPortAccess(
        _ generator: inout SeededGenerator, ports: UInt64, at now: Nanoseconds
    ) -> UInt64 {
        let offset = UInt16(generator.next(below: generator.chance(1, in: 50) ? 0x1_0000 : ports))
        let size = generator.pick([1, 1, 1, 1, 2, 4, 0, 3, -1, 8])
        if generator.chance(1, in: 2) { return UInt64(read(offset: offset, size: size, at: now)) }
        let value = generator.chance(1, in: 2) ? generator.next() : generator.value()
        write(offset: offset, size: size, value: UInt32(truncatingIfNeeded: value), at: now)
        return 0
    }
}

// MARK: Claims

/// Checks that a device's saved state is all of its state.
///
/// For each seed: brings a device into some state, saves it as JSON, goes on with the original, restores, and compares
/// with the moment of saving. Then the restored device makes the accesses that the original has made since, and must
/// answer and end alike, which also catches state that `==` or the coding leaves out.
func saveRestoreEqual<D: TestedDevice>(_ type: D.Type, seeds: Range<UInt64> = 1..<21, count: Int = 1_000) throws {
    let encoder = JSONEncoder()
    encoder.outputFormatting = .sortedKeys
    for (specimen, fresh) in D.specimens.enumerated() {
        for seed in seeds {
            let what: Comment = "\(D.self), specimen \(specimen), seed \(seed)"
            var original = fresh
            var generator = SeededGenerator(seed: seed)
            let middle = original.makeRandomAccesses(count, &generator, from: Nanoseconds(0)).end
            let copy = original
            let saved = try encoder.encode(original)

            var goingOn = generator
            let answers = original.makeRandomAccesses(count, &goingOn, from: middle).answers

            var restored = try JSONDecoder().decode(D.self, from: saved)
            #expect(restored == copy, "the restored state differs: \(what)")
            #expect(try encoder.encode(restored) == saved, "saving again differs: \(what)")
            #expect(
                restored.nextDeadline(after: middle) == copy.nextDeadline(after: middle),
                "the deadline differs: \(what)")

            var again = generator
            let restoredAnswers = restored.makeRandomAccesses(count, &again, from: middle).answers
            let difference = zip(answers, restoredAnswers).enumerated().first { $0.element.0 != $0.element.1 }
            #expect(difference == nil, "an answer differs: \(what)")
            #expect(answers.count == restoredAnswers.count, "\(what)")
            #expect(restored == original, "the continued state differs: \(what)")
        }
    }
}

/// Makes 100,000 random accesses, and 10,000 around the end of time: reaching the end is the claim. They are also
/// deterministic.
func survivesRandomAccesses<D: TestedDevice>(_ type: D.Type, seed: UInt64) {
    print("survivesRandomAccesses \(D.self): seed \(seed)")
    for fresh in D.specimens {
        var (first, second) = (fresh, fresh)
        var generator = SeededGenerator(seed: seed)
        let answers = first.makeRandomAccesses(100_000, &generator, from: Nanoseconds(0)).answers
        #expect(answers.count >= 100_000)
        generator = SeededGenerator(seed: seed)
        #expect(second.makeRandomAccesses(100_000, &generator, from: Nanoseconds(0)).answers == answers)
        #expect(first == second)

        var late = fresh
        late.makeRandomAccesses(10_000, &generator, from: Nanoseconds(.max - 1_000_000))
    }
}

/// Checks that a saved state in which numbers were replaced or array elements dropped is refused, or else harmless.
///
/// Reaching the end is the claim: a trap ends the test process.
func damagedStatesAreHarmless<D: TestedDevice>(_ type: D.Type, rounds: Int = 300, seed: UInt64) throws {
    print("damagedStatesAreHarmless \(D.self): seed \(seed)")
    var generator = SeededGenerator(seed: seed)
    var accepted = 0
    for round in 0..<rounds {
        var device = D.specimens[round % D.specimens.count]
        device.makeRandomAccesses(100, &generator, from: Nanoseconds(0))
        let text = String(decoding: try JSONEncoder().encode(device), as: UTF8.self)
        let damaged = damage(text, &generator)
        guard var decoded = try? JSONDecoder().decode(D.self, from: Data(damaged.utf8)) else { continue }
        accepted += 1
        decoded.makeRandomAccesses(100, &generator, from: .seconds(1_000), isDamaged: true)
        _ = decoded.nextDeadline(after: Nanoseconds(.max))
        decoded.advance(to: Nanoseconds(.max))
    }
    print("damagedStatesAreHarmless \(D.self): \(accepted) of \(rounds) damaged states were accepted")
    #expect(accepted > 0, "every damaged state was refused, so nothing was tested")
}

/// Replaces between a quarter and a 128th of the numbers in a JSON text, and now and then drops one from an array.
private func damage(_ text: String, _ generator: inout SeededGenerator) -> String {
    let extremes = [
        "0", "1", "7", "8", "15", "16", "23", "24", "25", "31", "32", "63", "64", "127", "128", "200", "255", "256",
        "65535", "4294967295", "9223372036854775807", "18446744073709551615", "-1",
    ]
    let sparsity: UInt64 = 4 << generator.next(below: 6)
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
            result += generator.pick(extremes)
        } else {
            result += digits
        }
    }
    return result
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
