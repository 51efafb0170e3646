import Testing
import VMCore

/// Kernels that hold nothing but what a loader looks at.
private enum Made {
    static func put<T: FixedWidthInteger>(_ value: T, _ offset: Int, in bytes: inout [UInt8]) {
        withUnsafeBytes(of: value.littleEndian) { bytes.replaceSubrange(offset..<(offset + $0.count), with: $0) }
    }

    /// A bzImage with one setup sector and 4 KiB of kernel that wants to be at 16 MiB.
    static func bzImage(has64BitEntry: Bool = true, initSize: UInt32 = 1 << 20) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 1024)
        bytes[0x1F1] = 1
        put(UInt32(256), 0x1F4, in: &bytes)  // times 16
        put(UInt16(0xAA55), 0x1FE, in: &bytes)
        bytes[0x201] = 0x6A
        bytes.replaceSubrange(0x202..<0x206, with: Array("HdrS".utf8))
        put(UInt16(0x020F), 0x206, in: &bytes)
        bytes[0x211] = 1
        put(UInt32(0x7FFF_FFFF), 0x22C, in: &bytes)
        put(UInt16(has64BitEntry ? 1 : 0), 0x236, in: &bytes)
        put(UInt32(100), 0x238, in: &bytes)
        put(UInt64(0x1234), 0x250, in: &bytes)
        put(UInt64(16 << 20), 0x258, in: &bytes)
        put(initSize, 0x260, in: &bytes)
        return bytes + (0..<4096).map { UInt8(truncatingIfNeeded: $0) }
    }

    /// A 64-bit ELF kernel of 16 bytes at 2 MiB, with the note that names `entry`.
    static func vmlinux(entry: UInt32 = 0x20_0004, physical: UInt64 = 0x20_0000, noteType: UInt32 = 18) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 64 + 2 * 56 + 24 + 16)
        bytes.replaceSubrange(0..<7, with: [0x7F, 0x45, 0x4C, 0x46, 2, 1, 1])
        put(UInt16(2), 16, in: &bytes)
        put(UInt16(62), 18, in: &bytes)
        put(UInt32(1), 20, in: &bytes)
        put(UInt64(64), 32, in: &bytes)
        put(UInt16(64), 52, in: &bytes)
        put(UInt16(56), 54, in: &bytes)
        put(UInt16(2), 56, in: &bytes)
        let (noteAt, codeAt) = (64 + 2 * 56, 64 + 2 * 56 + 24)
        func segment(_ index: Int, type: UInt32, at: Int, physical: UInt64, count: Int, memory: Int) {
            let header = 64 + index * 56
            put(type, header, in: &bytes)
            put(UInt32(5), header + 4, in: &bytes)
            put(UInt64(at), header + 8, in: &bytes)
            put(0xFFFF_FFFF_8000_0000 &+ physical, header + 16, in: &bytes)
            put(physical, header + 24, in: &bytes)
            put(UInt64(count), header + 32, in: &bytes)
            put(UInt64(memory), header + 40, in: &bytes)
        }
        segment(0, type: 1, at: codeAt, physical: physical, count: 16, memory: 4096)
        segment(1, type: 4, at: noteAt, physical: 0, count: 20, memory: 20)
        put(UInt32(4), noteAt, in: &bytes)
        put(UInt32(4), noteAt + 4, in: &bytes)
        put(noteType, noteAt + 8, in: &bytes)
        bytes.replaceSubrange((noteAt + 12)..<(noteAt + 16), with: Array("Xen\0".utf8))
        put(entry, noteAt + 16, in: &bytes)
        for i in 0..<16 { bytes[codeAt + i] = 0x90 }
        return bytes
    }
}

@Suite struct LinuxBootTests {
    private func memory(_ bytes: UInt64 = 64 << 20) throws -> GuestMemory {
        try GuestMemory(map: MemoryLayoutMap(pcWithBytes: bytes))
    }

    private func text(_ memory: GuestMemory, at address: UInt64) -> String {
        var bytes: [UInt8] = []
        while let byte = memory.load(.init(address + UInt64(bytes.count)), as: UInt8.self), byte != 0 { bytes.append(byte) }
        return String(decoding: bytes, as: UTF8.self)
    }

    private func ram(_ map: [(base: UInt64, length: UInt64, type: UInt32)]) -> [(UInt64, UInt64)] {
        map.filter { $0.type == 1 }.map { ($0.base, $0.length) }
    }

    @Test func bzImageStartsIn64BitModeWithItsParameters() throws {
        let memory = try memory()
        let initrd: [UInt8] = (0..<5000).map { UInt8(truncatingIfNeeded: $0 &* 7) }
        let guest = LinuxGuest(kernel: Made.bzImage(), commandLine: "console=ttyS0 x=1", initrd: initrd)
        let state = try LinuxBoot.load(guest, into: memory).state
        #expect(state.general.rip == 16 << 20 | 0x200)
        #expect(state.cs.selector == 0x10 && state.cs.attributes & 1 << 9 != 0 && state.ds.selector == 0x18)
        #expect(state.general.rflags & RFlags.interrupt == 0)
        #expect(memory.read(.init(16 << 20), count: 3) == [0, 1, 2])

        let zero = state.general.rsi
        func field<T: FixedWidthInteger>(_ offset: UInt64, _ type: T.Type) throws -> T {
            try #require(memory.load(.init(zero + offset), as: type))
        }
        #expect(try field(0x1EF, UInt8.self) == 0, "the sentinel: a loader that copies more than the header leaves 0xFF")
        #expect(try field(0x202, UInt32.self) == 0x5372_6448)
        #expect(try field(0x210, UInt8.self) == 0xFF)
        #expect(try field(0x250, UInt64.self) == 0, "no setup data, whatever the file says")
        #expect(text(memory, at: UInt64(try field(0x228, UInt32.self))) == "console=ttyS0 x=1")
        let (address, size) = (UInt64(try field(0x218, UInt32.self)), Int(try field(0x21C, UInt32.self)))
        #expect(memory.read(.init(address), count: size) == initrd)
        #expect(address % 4096 == 0 && address > 17 << 20)
        #expect(try field(0x70, UInt64.self) == ACPITables.rootPointer.rawValue)
        let map = try (0..<UInt64(field(0x1E8, UInt8.self))).map { i in
            (base: try field(0x2D0 + 20 * i, UInt64.self), length: try field(0x2D8 + 20 * i, UInt64.self),
             type: try field(0x2E0 + 20 * i, UInt32.self))
        }
        #expect(ram(map).last.map { $0 == (1 << 20, 63 << 20) } == true)
    }

    /// The processor's page walk and descriptor table agree with the state that the loader sets.
    @Test func firstFourGigabytesAreMappedToThemselves() throws {
        let memory = try memory()
        let guest = LinuxGuest(kernel: Made.bzImage(), commandLine: "")
        let state = try LinuxBoot.load(guest, into: memory).state
        #expect(state.control.cr0 & 0x8000_0001 == 0x8000_0001 && state.control.cr4 & 0x20 != 0)
        #expect(state.control.efer == 0x500)
        func entry(_ table: UInt64, _ index: UInt64) throws -> UInt64 {
            try #require(memory.load(.init(table & ~0xFFF + 8 * index), as: UInt64.self))
        }
        for address in [0, 0x7000, 16 << 20, 0xFEC0_0000, 0xFFE0_0000] as [UInt64] {
            let level3 = try entry(state.control.cr3, address >> 39)
            let level2 = try entry(level3, address >> 30 & 511)
            let page = try entry(level2, address >> 21 & 511)
            #expect(page & 0x83 == 0x83 && page & ~0x1F_FFFF == address & ~0x1F_FFFF)
        }
        let code: UInt64 = try #require(memory.load(.init(state.core.gdtr.base + UInt64(state.cs.selector)), as: UInt64.self))
        #expect(code >> 53 & 1 == 1 && code >> 47 & 1 == 1, "64-bit code, present")
    }

    @Test func realModeKernelFindsItsBIOS() throws {
        let memory = try memory(2 << 30)
        for guest in [LinuxGuest(kernel: Made.bzImage(), commandLine: "a=b", bootProtocol: .linux16),
                      LinuxGuest(kernel: Made.bzImage(has64BitEntry: false), commandLine: "a=b")] {
            let state = try LinuxBoot.load(guest, into: memory).state
            #expect(state.control.cr0 & 1 == 0)
            #expect(state.cs.selector == state.ds.selector + 0x20 && state.general.rip == 0)
            let base = UInt64(state.ds.selector) << 4
            let flags = try #require(memory.load(.init(base + 0x211), as: UInt8.self))
            #expect(flags & 0x81 == 0x81, "loaded high, and there is a heap")
            let line = try #require(memory.load(.init(base + 0x228), as: UInt32.self))
            #expect(text(memory, at: UInt64(line)) == "a=b")
            let heapEnd = try #require(memory.load(.init(base + 0x224), as: UInt16.self))
            #expect(UInt64(heapEnd) < state.general.rsp)
        }
        // Each vector leads into the BIOS; those of its services differ from the one of all others.
        func vector(_ number: UInt64) throws -> UInt32 { try #require(memory.load(.init(4 * number), as: UInt32.self)) }
        let other = try vector(0xFF)
        #expect(memory.load(.init(UInt64(other >> 16) << 4 + UInt64(other & 0xFFFF)), as: UInt8.self) == 0xCF, "IRET")
        for service in [0x10, 0x11, 0x12, 0x13, 0x15, 0x16, 0x1A] as [UInt64] {
            #expect(try vector(service) != other && vector(service) >> 16 == other >> 16)
        }
    }

    /// Real-mode code in a kernel's place, run by the soft engine, asks the BIOS for all that it knows and reports through
    /// the debug exit: how long the last entry of the memory map is, in units of 64 KiB, and how many there are.
    @Test func biosTellsTheMemoryMap() throws {
        let code: [UInt8] = [
            0x66, 0x31, 0xDB,  // xor ebx, ebx
            0x31, 0xF6,  // xor si, si
            0x66, 0xB8, 0x20, 0xE8, 0, 0,  // next: mov eax, 0xE820
            0x66, 0xBA, 0x50, 0x41, 0x4D, 0x53,  // mov edx, "SMAP"
            0x66, 0xB9, 20, 0, 0, 0,  // mov ecx, 20
            0xBF, 0x00, 0x40,  // mov di, 0x4000
            0xCD, 0x15,  // int 0x15
            0x72, 0x44,  // jc bad
            0x46,  // inc si
            0x66, 0x85, 0xDB,  // test ebx, ebx
            0x75, 0xE1,  // jnz next
            0x66, 0x8B, 0x2E, 0x08, 0x40,  // mov ebp, [0x4008]: the last entry's length
            0xB8, 0x01, 0xE8, 0xCD, 0x15,  // mov ax, 0xE801; int 0x15
            0x72, 0x32,  // jc bad
            0x3D, 0x00, 0x3C, 0x75, 0x2D,  // 15 MiB below 16 MiB
            0x39, 0xD3, 0x75, 0x29,  // BX is DX
            0xB4, 0x41, 0xCD, 0x13, 0x73, 0x23,  // INT 13h fails: no disk
            0xB4, 0x01, 0xCD, 0x16, 0x75, 0x1D,  // INT 16h: no key
            0xCD, 0x12, 0x3D, 0x7F, 0x02, 0x75, 0x16,  // INT 12h: 639 KiB
            0xCD, 0xFF,  // any other comes back
            0x66, 0xC1, 0xED, 0x10,  // shr ebp, 16
            0x66, 0x89, 0xE8, 0x66, 0xC1, 0xE0, 0x08,  // mov eax, ebp; shl eax, 8
            0x89, 0xF1, 0x88, 0xC8,  // mov cx, si; mov al, cl
            0xBA, 0xF4, 0x00, 0x66, 0xEF,  // out 0xF4
            0x66, 0xB8, 0xAD, 0x0B, 0, 0, 0xBA, 0xF4, 0x00, 0x66, 0xEF,  // bad: 0xBAD to 0xF4
        ]
        var kernel = Made.bzImage()
        kernel.replaceSubrange(0x200..<0x202, with: [0xEB, 0x66])  // jmp past the header
        kernel.replaceSubrange(0x268..<(0x268 + code.count), with: code)
        let guest = LinuxGuest(kernel: kernel, commandLine: "", bootProtocol: .linux16)
        let configuration = MachineConfiguration(image: .linux(guest), memoryBytes: 64 << 20, wallClockStart: 0)
        let built = try configuration.build(on: .soft)
        var options = LiveOptions()
        options.deadline = .seconds(20)
        let live = LiveEnvironment(platform: built.platform, serial: try SerialPort(.none), engine: built.engine, options: options)
        let ending = try Machine(engine: built.engine, environment: live).run()
        let map = MemoryMapEntry.all(of: built.engine.memory.map)
        #expect(ending == .debugExit((63 << 4) << 8 | UInt32(map.count)))
    }

    @Test func elfKernelStartsByItsPVHNote() throws {
        let memory = try memory()
        let guest = LinuxGuest(kernel: Made.vmlinux(), commandLine: "console=ttyS0", initrd: [1, 2, 3])
        let state = try PVHBoot.load(guest, into: memory).state
        #expect(state.general.rip == 0x20_0004 && state.control.cr0 & 0x8000_0001 == 1)
        #expect(memory.read(.init(0x20_0000), count: 2) == [0x90, 0x90])
        let info = state.general.rbx
        func field<T: FixedWidthInteger>(_ offset: UInt64, _ type: T.Type) throws -> T {
            try #require(memory.load(.init(info + offset), as: type))
        }
        #expect(try field(0, UInt32.self) == 0x336E_C578 && field(4, UInt32.self) == 1)
        #expect(try field(12, UInt32.self) == 1, "one module")
        let module = try field(16, UInt64.self)
        let start = try #require(memory.load(.init(module), as: UInt64.self))
        #expect(memory.read(.init(start), count: 3) == [1, 2, 3])
        #expect(memory.load(.init(module + 8), as: UInt64.self) == 3)
        #expect(text(memory, at: try field(24, UInt64.self)) == "console=ttyS0")
        #expect(try field(32, UInt64.self) == ACPITables.rootPointer.rawValue)
        #expect(try field(48, UInt32.self) == UInt32(MemoryMapEntry.all(of: memory.map).count))
    }

    @Test func kernelsAreToldApart() throws {
        func format(_ bytes: [UInt8]) throws -> String { "\(try KernelFormat(of: bytes))" }
        #expect(try format(Made.bzImage()) == "linux")
        #expect(try format(Made.vmlinux()) == "pvh")
        #expect(try format(BuiltInGuest.named("hello")?.bytes ?? []) == "multiboot")
        for bad in [[], [0x7F], Array("#!/bin/sh\n".utf8), [UInt8](repeating: 0, count: 4096)] as [[UInt8]] {
            #expect(throws: BootError.self) { try KernelFormat(of: bad) }
        }
    }

    @Test func whatDoesntFitIsRefusedInOneLine() throws {
        func refusal(_ guest: LinuxGuest, _ bytes: UInt64 = 64 << 20, pvh: Bool = false) throws -> BootError {
            let memory = try memory(bytes)
            do {
                _ = pvh ? try PVHBoot.load(guest, into: memory) : try LinuxBoot.load(guest, into: memory)
            } catch {
                #expect(!error.description.isEmpty && !error.description.contains("\n"))
                return error
            }
            Issue.record("it was accepted")
            return .usage("")
        }
        func changed(_ offset: Int, _ bytes: [UInt8]) -> LinuxGuest {
            var image = Made.bzImage()
            image.replaceSubrange(offset..<(offset + bytes.count), with: bytes)
            return LinuxGuest(kernel: image, commandLine: "")
        }
        let kernel = Made.bzImage()
        // What the user asked for: status 64.
        #expect(try refusal(LinuxGuest(kernel: kernel, commandLine: String(repeating: "x", count: 101))).isUsage)
        #expect(try refusal(LinuxGuest(kernel: kernel, commandLine: ""), 16 << 20).isUsage)
        #expect(try refusal(LinuxGuest(kernel: kernel, commandLine: "", initrd: .init(repeating: 0, count: 48 << 20))).isUsage)
        #expect(try refusal(LinuxGuest(kernel: Made.bzImage(has64BitEntry: false), commandLine: "", bootProtocol: .linux64)).isUsage)
        let vmlinux = Made.vmlinux()
        #expect(try refusal(LinuxGuest(kernel: vmlinux, commandLine: String(repeating: "x", count: 2048)), pvh: true).isUsage)
        #expect(try refusal(LinuxGuest(kernel: vmlinux, commandLine: ""), 2 << 20, pvh: true).isUsage)
        // What is wrong with the file: status 65.
        #expect(try !refusal(LinuxGuest(kernel: Array(kernel.dropLast(17)), commandLine: "")).isUsage)
        #expect(try !refusal(LinuxGuest(kernel: Array(kernel.prefix(0x210)), commandLine: "")).isUsage)
        #expect(try !refusal(changed(0x202, [0])).isUsage, "no magic")
        #expect(try !refusal(changed(0x206, [5, 2])).description.isEmpty, "protocol 2.05")
        #expect(try refusal(changed(0x206, [5, 2])).description.contains("2.5"))
        #expect(try refusal(changed(0x211, [0])).description.contains("zImage"))
        #expect(try !refusal(changed(0x201, [4])).isUsage, "a header that ends too soon")
        #expect(try !refusal(changed(0x258, [0, 0, 0, 0, 0, 0, 0, 1])).isUsage, "beyond 4 GiB")
        let noNote = LinuxGuest(kernel: Made.vmlinux(noteType: 17), commandLine: "")
        #expect(try refusal(noNote, pvh: true).description.contains("PVH"))
        let low = LinuxGuest(kernel: Made.vmlinux(physical: 0x1000), commandLine: "")
        #expect(try !refusal(low, pvh: true).isUsage)
    }

    @Test func damagedKernelsNeverTrap() throws {
        var random = SeededGenerator(seed: 12)
        let kernels = [Made.bzImage(), Made.vmlinux()]
        var refused = 0
        for round in 0..<4000 {
            var image = kernels[round % 2]
            // Where the headers are.
            let from = round % 2 == 0 ? 0x1F0 : 0
            let end = round % 2 == 0 ? 0x268 : image.count
            for _ in 0...random.next(below: 4) {
                image[from + Int(random.next(below: UInt64(end - from)))] = UInt8(truncatingIfNeeded: random.next())
            }
            if random.next(below: 4) == 0 { image.removeLast(Int(random.next(below: UInt64(image.count)))) }
            let guest = LinuxGuest(kernel: image, commandLine: "a", initrd: [1], bootProtocol: round % 4 == 0 ? .linux16 : .automatic)
            do {
                switch try KernelFormat(of: image) {
                case .pvh: _ = try PVHBoot.load(guest, into: memory(32 << 20))
                case .linux, .multiboot: _ = try LinuxBoot.load(guest, into: memory(32 << 20))
                }
            } catch is BootError {
                refused += 1
            }
        }
        #expect(refused > 500)
    }
}

@Suite struct ACPITablesTests {
    let image = ACPITables().image
    var base: UInt64 { ACPITables.rootPointer.rawValue }

    private func number(_ offset: Int, _ count: Int) -> UInt64 {
        image[offset..<(offset + count)].reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }

    /// The table at a physical address, of which the checksum is right.
    private func table(at address: UInt64, _ signature: String) throws -> ArraySlice<UInt8> {
        let start = Int(address - base)
        let length = Int(number(start + 4, 4))
        let table = image[start..<(start + length)]
        #expect(table.prefix(4).elementsEqual(signature.utf8))
        #expect(table.reduce(0, &+) == 0, "the checksum of \(signature)")
        return table
    }

    private func tables() throws -> [String: Int] {
        let xsdt = try table(at: number(24, 8), "XSDT")
        return Dictionary(uniqueKeysWithValues: stride(from: xsdt.startIndex + 36, to: xsdt.endIndex, by: 8).map { at in
            let start = Int(number(at, 8) - base)
            return (String(decoding: image[start..<(start + 4)], as: UTF8.self), start)
        })
    }

    @Test func rootLeadsToEveryTableAndAllChecksumsAreRight() throws {
        #expect(image.prefix(8).elementsEqual("RSD PTR ".utf8))
        #expect(image[..<20].reduce(0, &+) == 0 && image[..<36].reduce(0, &+) == 0)
        let found = try tables()
        #expect(Set(found.keys) == ["FACP", "APIC", "HPET"])
        for (name, start) in found { _ = try table(at: base + UInt64(start), name) }
        let rsdt = try table(at: number(16, 4), "RSDT")
        #expect(rsdt.count == 36 + 4 * found.count)
        #expect(base + UInt64(image.count) < 0xF_8000, "the BIOS begins there")
    }

    @Test func fixedDescriptionNamesThePortsOfTheDevices() throws {
        let fadt = try #require(tables()["FACP"])
        #expect(number(fadt + 4, 4) == 276)
        #expect(number(fadt + 46, 2) == 9)
        #expect(number(fadt + 48, 4) == 0, "always in ACPI mode")
        #expect(number(fadt + 56, 4) == 0x600 && number(fadt + 64, 4) == 0x604 && number(fadt + 76, 4) == 0x608)
        #expect(number(fadt + 112, 4) & (1 << 10) != 0)
        #expect(number(fadt + 116, 1) == 1 && number(fadt + 120, 8) == 0xCF9 && number(fadt + 128, 1) == 6)
        #expect(number(fadt + 212, 8) == 0x608, "the timer's extended address")
        _ = try table(at: number(fadt + 40, 4), "DSDT")
        #expect(number(fadt + 140, 8) == number(fadt + 40, 4))
        let facs = Int(number(fadt + 36, 4) - base)
        #expect(image[facs..<(facs + 4)].elementsEqual("FACS".utf8) && number(facs + 4, 4) == 64)
        #expect((base + UInt64(facs)) % 64 == 0)
    }

    /// What the tables say does what they say.
    @Test func resetAndPowerOffWorkAsDescribed() throws {
        let fadt = try #require(tables()["FACP"])
        var platform = HPETWiringTests.platform()
        platform.writePort(UInt16(number(fadt + 120, 8)), size: 1, value: UInt32(number(fadt + 128, 1)), at: .init(0))
        #expect(platform.takeRequest() == .reset)
        // SLP_TYPx as _S5 gives it, first alone, then with SLP_EN.
        let control = UInt16(number(fadt + 64, 4))
        let sleepType = UInt32(ACPIPowerManagement.sleepTypeS5) << 10
        platform.writePort(control, size: 2, value: sleepType, at: .init(0))
        #expect(platform.takeRequest() == nil)
        platform.writePort(control, size: 2, value: sleepType | 1 << 13, at: .init(0))
        #expect(platform.takeRequest() == .powerOff)
    }

    @Test func interruptControllersAreListedWithTheirOverrides() throws {
        let madt = try #require(tables()["APIC"])
        let end = madt + Int(number(madt + 4, 4))
        var entries: [[UInt8]] = []
        var at = madt + 44
        while at < end {
            let count = Int(image[at + 1])
            try #require(count >= 2 && at + count <= end)
            entries.append(Array(image[at..<(at + count)]))
            at += count
        }
        #expect(at == end)
        #expect(entries.map { $0[0] } == [0, 1, 2, 2, 4])
        #expect(entries[2][3] == 0 && entries[2][4] == 2, "IRQ 0 comes in on pin 2")
        #expect(entries[3][3] == 9 && entries[3][8] == 0b1101, "the SCI is active high and level-triggered")
        let hpet = try #require(tables()["HPET"])
        #expect(number(hpet + 36, 4) == UInt64(HPET.identification) && number(hpet + 44, 8) == HPET.address.rawValue)
    }
}

@Suite struct AMLTests {
    @Test func namesAndValuesAreEncodedAsTheGrammarSays() {
        #expect(AMLTerm.name("_UID", .integer(0)).bytes == [0x08] + "_UID".utf8 + [0])
        #expect(AMLTerm.name("\\X", .integer(1)).bytes == [0x08, 0x5C] + "X___".utf8 + [1])
        #expect(AMLTerm.name("A.B", .integer(0x1234)).bytes == [0x08, 0x2E] + "A___B___".utf8 + [0x0B, 0x34, 0x12])
        #expect(AMLTerm.name("A.B.C", .string("x")).bytes == [0x08, 0x2F, 3] + "A___B___C___".utf8 + [0x0D, 0x78, 0])
        #expect(AMLTerm.name("V", .integer(1 << 40)).bytes.suffix(9) == [0x0E, 0, 0, 0, 0, 0, 1, 0, 0])
        // EisaId("PNP0501") of the specification's macro.
        #expect(AMLTerm.name("_HID", .eisaID("PNP0501")).bytes.suffix(5) == [0x0C, 0x41, 0xD0, 0x05, 0x01])
        #expect(AMLTerm.name("_S5", .package([.integer(5), .integer(0)])).bytes.suffix(6) == [0x12, 0x05, 2, 0x0A, 5, 0])
    }

    @Test func lengthsCountThemselvesInEverySize() {
        func length(ofContent count: Int) -> [UInt8] {
            // A scope's content is its name of four characters and a name with a string of the rest.
            let text = String(repeating: "x", count: count - 4 - 7)
            return Array(AMLTerm.scope("ABCD", [.name("EFGH", .string(text))]).bytes.dropFirst().prefix(4))
        }
        #expect(length(ofContent: 62)[0] == 63)
        #expect(Array(length(ofContent: 63)[..<2]) == [0x41, 0x04], "65 bytes")
        #expect(Array(length(ofContent: 4093)[..<2]) == [0x4F, 0xFF], "4095 bytes")
        #expect(Array(length(ofContent: 4094)[..<3]) == [0x81, 0x00, 0x01], "4097 bytes")
    }

    @Test func resourcesEndWithTheirTag() {
        let bytes = AMLTerm.name("_CRS", .resources([.ports(0x3F8, count: 8), .interrupt(4), .memory(0xFED0_0000, bytes: 0x400)])).bytes
        let expected: [UInt8] = [0x47, 1, 0xF8, 3, 0xF8, 3, 1, 8, 0x22, 0x10, 0, 0x86, 9, 0, 1, 0, 0, 0xD0, 0xFE, 0, 4, 0, 0, 0x79, 0]
        #expect(bytes == [0x08] + "_CRS".utf8 + [0x11, UInt8(expected.count + 3), 0x0A, UInt8(expected.count)] + expected)
    }
}

@Suite struct PanicWatchTests {
    private func watch(_ text: String) -> PanicWatch {
        var watch = PanicWatch()
        // As it comes from a UART: a byte at a time.
        for byte in text.utf8 { watch.see([byte]) }
        return watch
    }

    @Test(arguments: [
        "[    1.234567] Kernel panic - not syncing: Attempted to kill init!\r\n", "Kernel panic - not syncing: x\n",
        "login: \n[   12.5][    T1] Kernel panic - not syncing: x\n",
    ]) func kernelsMessageIsAPanic(_ text: String) {
        #expect(watch(text).hasPanicked && !watch(text).isOver)
        #expect(watch(text + "[    1.3] ---[ end Kernel panic - not syncing: x ]---\r\n").isOver)
    }

    @Test(arguments: [
        "grep 'Kernel panic - not syncing' /var/log/messages\n", "[    1.2] printk: Kernel panic - not syncing\n",
        "[    1.2] Kernel panic\n", "Kernel panic - not syncing", "---[ end Kernel panic - not syncing: x ]---\n",
    ]) func otherTextIsNone(_ text: String) {
        #expect(!watch(text).hasPanicked && !watch(text).isOver)
    }
}
