import Testing
import VMCore

@Suite struct CPUStateTests {
    /// A state in which every byte of the encoding can differ from the default.
    private func randomState(_ seed: UInt64) -> CPUState {
        var random = SeededGenerator(seed: seed)
        var bytes = CPUState.reset().encoded()
        while true {
            for i in 1..<bytes.count { bytes[i] = UInt8(truncatingIfNeeded: random.next()) }
            if let state = CPUState(encoded: bytes) { return state }
        }
    }

    @Test func encodingSurvivesARoundTrip() throws {
        for seed in 1...20 as ClosedRange<UInt64> {
            let state = randomState(seed)
            let encoded = state.encoded()
            let decoded = try #require(CPUState(encoded: encoded))
            #expect(decoded == state)
            #expect(decoded.encoded() == encoded)
            #expect(decoded.digest == state.digest)
        }
    }

    /// A counter that the engine counts is part of the state, and one that it doesn't leaves no mark in it.
    @Test func encodingHoldsTheCounterThatTheEngineCounts() throws {
        let without = CPUState.reset()
        var with = without
        with.timestampCounter = 0x1234_5678_9ABC
        let encoded = with.encoded()
        #expect(CPUState(encoded: encoded) == with && with.digest != without.digest)
        #expect(Array(encoded.dropFirst().dropLast(8)) == Array(without.encoded().dropFirst()))
        #expect(CPUState(encoded: Array(encoded.dropLast(8))) == nil)
    }

    @Test func everyByteOfTheStateCounts() throws {
        let encoded = CPUState.reset().encoded()
        let digest = CPUState.reset().digest
        for i in 1..<encoded.count {
            var changed = encoded
            changed[i] ^= 0x10
            // A flag is true or false whatever bit is set in its byte.
            guard let state = CPUState(encoded: changed), state.encoded() != encoded else { continue }
            #expect(state.digest != digest, "byte \(i)")
        }
    }

    @Test func damagedEncodingsAreRefused() {
        let encoded = CPUState.reset().encoded()
        #expect(CPUState(encoded: []) == nil)
        #expect(CPUState(encoded: Array(encoded.dropLast())) == nil)
        #expect(CPUState(encoded: encoded + [0]) == nil)
        #expect(CPUState(encoded: [9] + encoded.dropFirst()) == nil)
    }

    @Test func coreDigestDependsOnEachCoreRegister() {
        let base = CPUState.reset().core
        var seen: Set<UInt64> = [base.digest]
        func changed(_ body: (inout CoreRegisters) -> Void) {
            var copy = base
            body(&copy)
            #expect(seen.insert(copy.digest).inserted)
        }
        changed { $0.general.rax = 1 }
        changed { $0.general.r15 = 1 }
        changed { $0.general.rip = 1 }
        changed { $0.general.rflags = 3 }
        changed { $0.es.selector = 1 }
        changed { $0.tr.base = 1 }
        changed { $0.ldtr.limit = 1 }
        changed { $0.cs.attributes = 1 }
        changed { $0.gdtr.base = 1 }
        changed { $0.idtr.limit = 1 }
        changed { $0.control.cr2 = 1 }
        changed { $0.control.cr8 = 1 }
        changed { $0.control.efer = 1 }
    }

    @Test func resetStateIsTheManuals() {
        let state = CPUState.reset()
        #expect(state.general.rip == 0xFFF0)
        #expect(state.cs.base == 0xFFFF_0000)
        #expect(state.control.cr0 == 0x6000_0010)
        #expect(state.cpl == 0)
        #expect(state.linearRIP == 0xFFFF_FFF0)
    }
}
