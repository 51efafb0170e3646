import Testing
import VMCore

/// What the soft engine offers to guests.
@Suite struct FeatureTests {
    private static let wide = SoftEngine.supportedFeatures(onHostWithAVX: true)
    private static let narrow = SoftEngine.supportedFeatures(onHostWithAVX: false)
    static let hasAVX = SoftEngine.supportedFeatures == wide

    @Test func theWidestModelNeedsTheHostsArithmetic() throws {
        let model = try CPUModel(named: "x86-64-v3", timestamps: .record, supported: Self.wide)
        try model.check(against: Self.wide, timestamps: .record)
        let lacking = ["fma", "movbe", "xsave", "avx", "f16c", "bmi1", "avx2", "bmi2", "lzcnt"]
        func lacks(_ body: () throws(HostError) -> Void) -> [String]? {
            do throws(HostError) { try body() } catch {
                if case .missingFeatures(let names, "x86-64-v3") = error { return names }
            }
            return nil
        }
        #expect(lacks { () throws(HostError) in
            _ = try CPUModel(named: "x86-64-v3", timestamps: .record, supported: Self.narrow)
        } == lacking)
        #expect(lacks { () throws(HostError) in try model.check(against: Self.narrow, timestamps: .record) } == lacking)
        _ = try CPUModel(named: "x86-64-v2", timestamps: .record, supported: Self.narrow)
    }

    @Test(.enabled(if: hasAVX, "SKIPPED: this host has no AVX, FMA or F16C"))
    func guestsEnableAVXAndUseIt() throws {
        let code: [UInt8] = [
            0x0F, 0x20, 0xE0, 0x0D, 0, 6, 4, 0, 0x0F, 0x22, 0xE0,  // OSXSAVE, OSFXSR and OSXMMEXCPT into CR4
            0xB8, 0x0D, 0, 0, 0, 0x31, 0xC9, 0x0F, 0xA2, 0x89, 0x1D, 0, 0x50, 0, 0,  // CPUID.0DH: EBX to [0x5000]
            0x31, 0xC9, 0x31, 0xD2, 0xB8, 7, 0, 0, 0, 0x0F, 0x01, 0xD1,  // XSETBV of all three components
            0xB8, 0x0D, 0, 0, 0, 0x31, 0xC9, 0x0F, 0xA2, 0x89, 0x1D, 4, 0x50, 0, 0,  // the same to [0x5004]
            0xB8, 1, 0, 0, 0, 0x0F, 0xA2, 0x89, 0x0D, 8, 0x50, 0, 0,  // CPUID.1: ECX to [0x5008]
            0xC5, 0xFC, 0x10, 0x05, 0, 0x51, 0, 0,  // VMOVUPS YMM0, [0x5100]
            0xC4, 0xE2, 0x7D, 0xB8, 0xC0,  // VFMADD231PS YMM0, YMM0, YMM0
            0xC5, 0xFC, 0x11, 0x05, 0x40, 0x51, 0, 0,  // VMOVUPS [0x5140], YMM0
        ]
        let machine = try SoftMachine(code + SoftMachine.report(1), cpu: "x86-64-v3")
        try machine.enterProtectedMode()
        let memory = machine.engine.memory
        memory.write((1...8).flatMap { withUnsafeBytes(of: Float($0).bitPattern) { [UInt8]($0) } }, at: .init(0x5100))
        #expect(try machine.report() == 1)
        func word(_ address: UInt64) -> UInt32? { memory.load(.init(address), as: UInt32.self) }
        #expect(word(0x5000) == 576 && word(0x5004) == 832)
        // OSXSAVE, AVX, XSAVE, MOVBE, FMA and F16C
        #expect(word(0x5008).map { $0 & 0x3C40_1000 } == 0x3C40_1000)
        for i in 0..<8 as Range<UInt64> {
            let x = Float(i + 1)
            #expect(word(0x5140 + 4 * i) == (x * x + x).bitPattern)
        }
        #expect(try machine.engine.state().control.xcr0 == 7)
    }

    /// A guest that wasn't offered the state can't enable it.
    @Test func guestsOfOtherModelsCannotEnableIt() throws {
        // MOV EAX, CR4; OR EAX, OSXSAVE; MOV CR4, EAX
        let machine = try SoftMachine([0x0F, 0x20, 0xE0, 0x0D, 0, 0, 4, 0, 0x0F, 0x22, 0xE0] + SoftMachine.report(1), cpu: "x86-64-v2")
        try machine.enterProtectedMode()
        machine.handleProtected(13, at: 0x800, SoftMachine.report(2))
        #expect(try machine.report() == 2)
    }
}
